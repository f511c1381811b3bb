# Finds SentencePiece and defines SentencePiece::processor and SentencePiece::trainer.
find_path(SentencePiece_INCLUDE_DIR sentencepiece_processor.h)
find_library(SentencePiece_LIBRARY sentencepiece)
find_library(SentencePiece_TRAIN_LIBRARY sentencepiece_train)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(SentencePiece
  REQUIRED_VARS SentencePiece_LIBRARY SentencePiece_TRAIN_LIBRARY SentencePiece_INCLUDE_DIR)
if(SentencePiece_FOUND AND NOT TARGET SentencePiece::processor)
  add_library(SentencePiece::processor INTERFACE IMPORTED)
  target_include_directories(SentencePiece::processor SYSTEM INTERFACE ${SentencePiece_INCLUDE_DIR})
  target_link_libraries(SentencePiece::processor INTERFACE ${SentencePiece_LIBRARY})
  add_library(SentencePiece::trainer INTERFACE IMPORTED)
  target_link_libraries(SentencePiece::trainer INTERFACE ${SentencePiece_TRAIN_LIBRARY} SentencePiece::processor)
endif()
