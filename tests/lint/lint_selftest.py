#!/usr/bin/env python3
"""Shows that the checks of this folder can fail: each rule is given a small tree that breaks it."""

import pathlib
import subprocess
import tempfile
import unittest

import check_docs
import check_layers
import check_style


class Tree:
    """A throw-away repository with the given files."""

    def __init__(self, files: dict[str, str]):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def __enter__(self) -> pathlib.Path:
        return self.root

    def __exit__(self, *_):
        self.folder.cleanup()


def layer_errors(files: dict[str, str]) -> list[str]:
    with Tree({"src/base/error.hpp": "", **files}) as root:
        return check_layers.check(root)


class Layers(unittest.TestCase):
    def test_accepts_downward_and_own_includes(self):
        self.assertEqual(layer_errors({
            "src/nn/weight.hpp": '#include <ATen/core/Tensor.h>\n#include "base/error.hpp"\n',
            "src/nn/weight.cpp": '#include "nn/weight.hpp"\n#include "nn/detail/gemm.hpp"\n',
            "src/nn/detail/gemm.hpp": "",
        }), [])

    def refuses(self, file: str, include: str, reason: str, exists: str = "base/error.hpp"):
        errors = layer_errors({f"src/{exists}": "", f"src/{file}": f"\n#include {include}\n"})
        self.assertEqual(len(errors), 1, errors)
        self.assertIn(f"src/{file}:2: ", errors[0])
        self.assertIn(reason, errors[0])

    def test_refuses_an_include_from_above(self):
        self.refuses("nn/weight.hpp", '"moe/router.hpp"', "above", "moe/router.hpp")

    def test_refuses_a_sibling(self):
        self.refuses("optim/adamw.hpp", '"model/transformer.hpp"', "sibling", "model/transformer.hpp")

    def test_refuses_private_parts_of_another_library(self):
        self.refuses("nn/weight.hpp", '"parallel/detail/handle.hpp"', "private", "parallel/detail/handle.hpp")

    def test_refuses_a_header_that_does_not_exist(self):
        self.refuses("nn/weight.hpp", '"base/nothing.hpp"', "does not exist")

    def test_refuses_a_path_relative_to_the_file(self):
        self.refuses("nn/weight.hpp", '"weight_hook.hpp"', "no <folder>/<file> path")

    def test_refuses_our_header_in_angle_brackets(self):
        self.refuses("nn/weight.hpp", "<base/error.hpp>", "is ours")

    def test_fences_foreign_headers(self):
        self.refuses("nn/weight.cpp", "<mpi.h>", "MPI")
        self.refuses("parallel/communicator.hpp", "<mpi.h>", "MPI")
        self.refuses("model/model.cpp", "<nccl.h>", "NCCL")
        self.refuses("train/save.cpp", "<hdf5.h>", "HDF5")
        self.refuses("app/main.cpp", "<boost/program_options.hpp>", "Boost")
        self.refuses("nn/weight.cpp", "<cuda_runtime.h>", "CUDA")
        self.refuses("nn/weight.cpp", "<c10/cuda/CUDAStream.h>", "CUDA")
        self.refuses("data/batch.hpp", "<ATen/core/Tensor.h>", "free of LibTorch")
        self.refuses("base/error.cpp", "<c10/util/Exception.h>", "free of LibTorch")
        self.refuses("nn/weight.cpp", "<torch/torch.h>", "narrow")
        self.refuses("infer/text.cpp", "<sentencepiece_processor.h>", "SentencePiece")

    def test_lets_foreign_headers_into_their_folders(self):
        self.assertEqual(layer_errors({
            "src/parallel/communicator.cpp": "#include <mpi.h>\n",
            "src/parallel/detail/handle.hpp": "#include <mpi.h>\n",
            "src/parallel/nccl_backend.cpp": "#include <nccl.h>\n#include <cuda_runtime.h>\n",
            "src/checkpoint/file.cpp": "#include <hdf5.h>\n",
            "src/config/ini.cpp": "#include <boost/program_options.hpp>\n",
            "src/kernels/gemm.cpp": "#include <ATen/ATen.h>\n",
        }), [])

    def test_keeps_tensors_in_one_kernel_unit(self):
        include = "#include <ATen/ATen.h>\n"
        self.assertEqual(len(layer_errors({"src/kernels/a.cpp": include, "src/kernels/b.cpp": include})), 1)
        self.assertEqual(layer_errors({"src/kernels/a.hpp": include, "src/kernels/cpu/a.cpp": include}), [])
        self.assertEqual(layer_errors({"src/kernels/a.hpp": include, "src/kernels/tensor_kernels.cpp": include}), [])
        self.assertEqual(layer_errors({"src/kernels/a.hpp": include, "src/kernels/b.hpp": "#include <c10/x.h>\n"}), [])

    def test_refuses_an_unknown_folder(self):
        self.assertEqual(len(layer_errors({"src/misc/a.hpp": ""})), 1)


def style_errors(text: str, name: str = "docs/page.md") -> list[str]:
    with Tree({name: text}) as root:
        return list(check_style.check_text(root / name, root))


class Style(unittest.TestCase):
    def test_accepts_ordinary_text(self):
        self.assertEqual(style_errors("Run `scripts/test.sh` in <folder>/work/x, see /usr/share/dictd.\n"), [])

    def test_refuses_machine_paths(self):
        for path in ("/ro" "ot/x", "/wor" "k/main", "/ho" "me/anna/x"):
            self.assertEqual(len(style_errors(f"open {path}\n")), 1, path)

    def test_refuses_registry_addresses(self):
        self.assertEqual(len(style_errors("https:" "//pypi.example/simple\n")), 1)
        self.assertEqual(len(style_errors("pip --index" "-url x\n")), 1)

    def test_refuses_unexplained_marks(self):
        self.assertEqual(len(style_errors("TO" "DO: later\n")), 1)
        self.assertEqual(style_errors("TO" "DO(needs NCCL 2.30): group the sends\n"), [])

    def test_refuses_trailing_space_and_missing_newline(self):
        self.assertEqual(len(style_errors("a \n")), 1)
        self.assertEqual(len(style_errors("a")), 1)

    def test_refuses_random_numbers_without_a_seed_in_tests(self):
        def errors(text: str, name: str = "tests/a_test.cpp") -> int:
            with Tree({name: text}) as root:
                return len(list(check_style.unseeded_numbers(root / name, root)))

        self.assertEqual(errors("auto x = at::randn({2});\n"), 1)
        self.assertEqual(errors("std::random_device any;\n"), 1)
        self.assertEqual(errors("at::manual_seed(1);\nauto x = at::randn({2});\n"), 0)
        self.assertEqual(errors("auto x = at::randn({2}, generator);\n"), 0)
        self.assertEqual(errors("auto x = at::randn({2});\n", "src/a.cpp"), 0)

    def test_refuses_unformatted_code(self):
        files = {"a.cpp": "int  f( ){}\n", "b.cpp": "int f();\n", ".clang-format": "BasedOnStyle: Google\n"}
        with Tree(files) as root:
            errors = list(check_style.check_format([root / "a.cpp", root / "b.cpp"], root))
        self.assertEqual(len(errors), 1, errors)
        self.assertIn("a.cpp:1: ", errors[0])

    def test_lists_new_files_that_git_does_not_ignore(self):
        with Tree({"new.md": "", "made/x.md": "", ".gitignore": "/made/\n"}) as root:
            subprocess.run(["git", "-C", str(root), "init", "-q"], check=True)
            names = {file.name for file in check_style.listed_files(root)}
        self.assertEqual(names, {"new.md", ".gitignore"})


class Docs(unittest.TestCase):
    GOOD = {
        "README.md": "[page](docs/testing.md) and scripts/a.sh, see [x](https://example.org/y)\n",
        "scripts/a.sh": "",
        "docs/testing.md": "`Layout.Holds`\n",
        "tests/a_test.cpp": "TEST_P(Layout, Holds) {}\n",
    }

    def errors(self, **changes: str) -> list[str]:
        with Tree({**self.GOOD, **{name.replace("__", "/") + ".md": text for name, text in changes.items()}}) as root:
            return check_docs.check(root)

    def test_accepts_what_exists(self):
        self.assertEqual(self.errors(), [])

    def test_refuses_dead_links_scripts_and_tests(self):
        self.assertEqual(len(self.errors(README="[page](docs/nothing.md)\n")), 1)
        self.assertEqual(len(self.errors(README="run scripts/nothing.sh\n")), 1)
        self.assertEqual(len(self.errors(docs__testing="`Layout.Holds` and `Layout.Breaks`\n")), 1)
        self.assertEqual(len(self.errors(docs__testing="nothing\n")), 1)


if __name__ == "__main__":
    unittest.main()
