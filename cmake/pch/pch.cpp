// Owns the precompiled header; see pch.hpp.
