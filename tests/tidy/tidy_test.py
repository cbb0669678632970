#!/usr/bin/env python3
"""Plants breaches in a small clean tree: each check catches its own, and nothing else."""

import pathlib
import tempfile
import unittest

import sizes
import tidy
from source_tree import SourceTree, blank_comments_and_literals

HEADER = """// What it is.
#ifndef KVIST_COMMON_BASE_THING_H_
#define KVIST_COMMON_BASE_THING_H_

namespace kvist {

// Counts things. Thread-compatible.
class Thing {
 public:
  int Count() const { return count_; }

 private:
  int count_ = 0;
};

}  // namespace kvist

#endif  // KVIST_COMMON_BASE_THING_H_
"""

README = """# Kvist
## Life of a request
1. `Thing::Count()` (`common/base/thing.h`).
## Map of the folders
| `common/base` | base |
| `worker/engine` | engine |
"""

CLEAN = {
    "README.md": README,
    "common/base/CMakeLists.txt": "kvist_library(NAME base SRCS thing.cc HDRS thing.h)\n",
    "common/base/thing.h": HEADER,
    "common/base/thing.cc": '#include "common/base/thing.h"\n',
    "tests/common/base/CMakeLists.txt": "kvist_test(NAME thing_test SRCS thing_test.cc)\n",
    "tests/common/base/thing_test.cc": '#include "common/base/thing.h"\n',
    "worker/engine/CMakeLists.txt": "kvist_library(NAME engine SRCS engine.cc)\n",
    "worker/engine/engine.cc": '#include "common/base/thing.h"\n',
    "tests/worker/engine/CMakeLists.txt": "kvist_test(NAME engine_test SRCS engine_test.cc)\n",
    "tests/worker/engine/engine_test.cc": "",
    "deploy/local/start.sh": "#!/usr/bin/env bash\nset -euo pipefail\necho started\n",
}


class TidyTest(unittest.TestCase):
    def breaches(self, check, changes):
        """What `check` finds in the clean tree with `changes`: path -> text, None removes."""
        with tempfile.TemporaryDirectory() as folder:
            for path, text in {**CLEAN, **changes}.items():
                if text is None:
                    continue
                file = pathlib.Path(folder, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
                if path.endswith(".sh"):
                    file.chmod(0o755)
            return [str(breach) for breach in tidy.run(SourceTree(folder), [check])]

    def assert_caught(self, check, changes, message):
        found = self.breaches(check, changes)
        self.assertEqual(len(found), 1, found)
        self.assertIn(message, found[0])

    def test_clean_tree_has_no_breach(self):
        for check in tidy.CHECKS:
            with self.subTest(check):
                self.assertEqual(self.breaches(check, {}), [])

    def test_include_to_the_right_is_caught(self):
        self.assert_caught(
            "includes",
            {
                "common/base/thing.cc": '#include "worker/engine/engine.h"\n',
                "worker/engine/engine.h": "",
            },
            "common/base/thing.cc:1: common includes worker/engine/engine.h",
        )

    def test_grpc_in_a_pure_folder_is_caught(self):
        for header in (
            "<grpcpp/grpcpp.h>",
            "<google/protobuf/message.h>",
            "<prometheus/counter.h>",
        ):
            with self.subTest(header):
                self.assert_caught(
                    "includes",
                    {"worker/engine/engine.cc": f"#include {header}\n"},
                    "worker is pure",
                )

    def test_generated_header_in_a_pure_folder_is_caught(self):
        self.assert_caught(
            "includes",
            {"worker/engine/engine.cc": '#include "proto/kvist/v1/types.pb.h"\n'},
            "worker is pure",
        )

    def test_generated_header_in_services_passes(self):
        found = self.breaches(
            "includes",
            {
                "services/worker/w.cc": '#include "proto/kvist/v1/types.pb.h"\n'
                "#include <grpcpp/grpcpp.h>\n"
            },
        )
        self.assertEqual(found, [])

    def test_threads_in_cache_manager_are_caught(self):
        self.assert_caught(
            "includes", {"cache_manager/pool.cc": "#include <thread>\n"}, "no threads"
        )

    def test_include_of_tests_is_caught(self):
        self.assert_caught(
            "includes",
            {
                "worker/engine/engine.cc": '#include "tests/support/fake.h"\n',
                "tests/support/fake.h": "",
            },
            "includes tests/support/fake.h",
        )

    def test_include_of_nothing_is_caught(self):
        self.assert_caught(
            "includes",
            {"worker/engine/engine.cc": '#include "common/base/gone.h"\n'},
            "there is no common/base/gone.h",
        )

    def test_include_not_from_the_root_is_caught(self):
        self.assert_caught(
            "includes", {"worker/engine/engine.cc": '#include "engine.h"\n'}, "from the root"
        )

    def test_glob_is_caught(self):
        self.assert_caught(
            "cmake_lists",
            {"tests/worker/CMakeLists.txt": "file(GLOB sources *.cc)\n"},
            "not globbed",
        )

    def test_listed_source_that_is_not_there_is_caught(self):
        self.assert_caught(
            "cmake_lists", {"worker/engine/engine.cc": None}, "there is no worker/engine/engine.cc"
        )

    def test_source_that_is_not_listed_is_caught(self):
        self.assert_caught(
            "cmake_lists",
            {"worker/engine/extra.cc": ""},
            "worker/engine/extra.cc:1: no CMakeLists.txt lists",
        )

    def test_headers_of_tests_may_go_unlisted(self):
        self.assertEqual(self.breaches("cmake_lists", {"tests/worker/engine/case.h": ""}), [])
        self.assert_caught("cmake_lists", {"worker/engine/case.h": ""}, "worker/engine/case.h:1")

    def test_proto_files_are_listed_by_their_names(self):
        lists = {"proto/CMakeLists.txt": "set(PROTOS types)\n", "proto/kvist/v1/types.proto": ""}
        self.assertEqual(self.breaches("cmake_lists", lists), [])
        extra = {**lists, "proto/kvist/v1/extra.proto": ""}
        self.assert_caught("cmake_lists", extra, "extra.proto:1: no CMakeLists.txt lists this file")

    def test_source_listed_in_a_comment_is_not_listed(self):
        self.assert_caught(
            "cmake_lists",
            {"worker/engine/CMakeLists.txt": "# engine.cc\n"},
            "no CMakeLists.txt lists this file",
        )

    def test_wrong_guard_is_caught(self):
        changed = HEADER.replace("#ifndef KVIST_COMMON_BASE_THING_H_", "#ifndef THING_H")
        self.assert_caught("guards", {"common/base/thing.h": changed}, "KVIST_COMMON_BASE_THING_H_")

    def test_missing_guard_is_caught(self):
        self.assert_caught(
            "guards", {"common/base/thing.h": "int x;\n"}, "KVIST_COMMON_BASE_THING_H_"
        )

    def test_unnamed_endif_is_caught(self):
        changed = HEADER.replace("#endif  // KVIST_COMMON_BASE_THING_H_", "#endif")
        self.assert_caught("guards", {"common/base/thing.h": changed}, "the last line should be")

    def test_lines_of_101_columns_are_caught_and_100_pass(self):
        self.assertEqual(self.breaches("sizes", {"a.sh": "#" * 100 + "\n"}), [])
        self.assert_caught("sizes", {"a.sh": "#" * 101 + "\n"}, "101 columns")

    def test_files_one_line_too_long_are_caught(self):
        self.assertEqual(
            self.breaches("sizes", {"worker/a.cc": "\n" * 500, "worker/a.h": "\n" * 300}), []
        )
        self.assert_caught("sizes", {"worker/a.cc": "\n" * 501}, "501 lines")
        self.assert_caught("sizes", {"worker/a.h": "\n" * 301}, "301 lines")

    def test_functions_of_71_lines_are_caught_and_70_pass(self):
        def function(lines):
            return "namespace kvist {\nint Sum(int a) {\n" + "  ++a;\n" * (lines - 2) + "}\n}\n"

        self.assertEqual(self.breaches("sizes", {"worker/a.cc": function(70)}), [])
        self.assert_caught("sizes", {"worker/a.cc": function(71)}, "function Sum has 71 lines")

    def test_python_functions_of_71_lines_are_caught(self):
        self.assert_caught(
            "sizes", {"a.py": "def f():\n" + "    pass\n" * 70}, "function f has 71 lines"
        )

    def test_python_that_does_not_parse_is_caught(self):
        self.assert_caught("sizes", {"a.py": "def f(:\n"}, "does not parse")

    def test_exception_lets_a_function_pass_and_must_be_needed(self):
        long = {"worker/a.cc": "int Sum() {\n" + "\n" * 80 + "}\n"}
        allowed = {tidy.EXCEPTIONS: "sizes worker/a.cc:Sum  # a table\n"}
        self.assertEqual(self.breaches("sizes", {**long, **allowed}), [])
        self.assert_caught("sizes", allowed, "covers nothing")

    def test_exception_without_a_reason_is_an_error(self):
        with self.assertRaises(ValueError):
            self.breaches("sizes", {tidy.EXCEPTIONS: "sizes worker/a.cc\n"})

    def test_unfinished_words_are_caught(self):
        for word in ("// TO" "DO: later", "// FIX" "ME", "#if " "0", "TEST(A, DISABLED" "_B) {}"):
            with self.subTest(word):
                self.assert_caught("words", {"worker/engine/engine.cc": word + "\n"}, "unfinished")

    def test_ending_the_process_is_caught(self):
        for code in ("throw 1;", "exit(1);", "std::abort();"):
            with self.subTest(code):
                self.assert_caught(
                    "words", {"worker/engine/engine.cc": f"void F() {{ {code} }}\n"}, "absl::Status"
                )

    def test_words_in_comments_and_methods_named_alike_do_not_end_the_process(self):
        code = '// throw nothing, exit(1) never\nvoid F() { run.abort(); Log("throw"); }\n'
        self.assertEqual(self.breaches("words", {"worker/engine/engine.cc": code}), [])

    def test_sleeping_test_is_caught(self):
        code = "void F() { std::this_thread::sleep_for(x); }\n"
        self.assert_caught("words", {"tests/worker/engine/engine_test.cc": code}, "no sleeps")

    def test_name_that_says_nothing_is_caught(self):
        self.assert_caught("words", {"common/base/string_utils.cc": ""}, "says nothing")

    def test_folder_without_tests_is_caught(self):
        self.assert_caught(
            "mirrors", {"tests/worker/engine/engine_test.cc": None}, "no test stands"
        )

    def test_test_of_no_folder_is_caught(self):
        self.assert_caught("mirrors", {"tests/worker/gone/a_test.cc": ""}, "no folder worker/gone")

    def test_test_outside_of_tests_is_caught(self):
        self.assert_caught("mirrors", {"worker/engine/a_test.cc": ""}, "below tests/")

    def test_readme_naming_a_missing_path_is_caught(self):
        self.assert_caught(
            "readme",
            {"README.md": README + "See `common/base/gone.h`.\n"},
            "there is no common/base/gone.h",
        )

    def test_readme_naming_a_missing_function_is_caught(self):
        self.assert_caught(
            "readme",
            {"README.md": README + "See `Thing::Gone()`.\n"},
            "no source has Thing::Gone()",
        )

    def test_readme_naming_a_function_only_in_a_comment_is_caught(self):
        changes = {
            "README.md": README + "See `Gone()`.\n",
            "worker/engine/engine.cc": "// Gone() was here\n",
        }
        self.assert_caught("readme", changes, "no source has Gone()")

    def test_readme_without_the_sections_is_caught(self):
        self.assertEqual(len(self.breaches("readme", {"README.md": "# Kvist\n"})), 2)

    def test_step_without_a_function_and_its_path_is_caught(self):
        changed = README.replace("1. `Thing::Count()` (`common/base/thing.h`).", "1. It counts.")
        self.assert_caught("readme", {"README.md": changed}, "step 1 of the life of a request")

    def test_step_naming_a_function_of_another_file_is_caught(self):
        changed = README.replace("(`common/base/thing.h`)", "(`common/base/thing.cc`)")
        message = "no Thing::Count() in common/base/thing.cc"
        self.assert_caught("readme", {"README.md": changed}, message)

    def test_folder_missing_in_the_map_is_caught(self):
        self.assert_caught("readme", {"worker/kv/CMakeLists.txt": ""}, "the map lacks `worker/kv`")

    def proto(self, fields):
        text = f'syntax = "proto3";\n{fields}'
        lists = "kvist_proto(NAMES a)\n"
        return {"proto/kvist/v1/a.proto": text, "proto/CMakeLists.txt": lists}

    def test_field_of_a_message_without_a_comment_is_caught(self):
        for field in ("int64 tokens = 1;", "repeated a.B tokens = 1;", "map<a, B> tokens = 1;"):
            for text in (
                f"// All.\nmessage A {{\n  {field}\n}}\n",
                f"message A {{\n  oneof b {{\n    {field}\n  }}\n}}\n",
                # A comment after the field before is that field's.
                f"message A {{\n  int32 a = 2;  // of a\n  {field}\n}}\n",
            ):
                self.assert_caught("protos", self.proto(text), "A.tokens has no comment")

    def test_fields_with_a_comment_beside_or_above_them_pass(self):
        text = (
            "message A {\n  int64 a = 1;  // of a\n  // Of b.\n  optional B b = 2;\n"
            "  enum C {\n    NONE = 0;\n  }\n}\nmessage D {}\n"
        )
        self.assertEqual(self.breaches("protos", self.proto(text)), [])

    def test_class_without_comment_is_caught(self):
        changed = HEADER.replace("// Counts things. Thread-compatible.\n", "")
        self.assert_caught(
            "class_comments", {"common/base/thing.h": changed}, "class Thing has no comment"
        )

    def test_class_with_state_and_no_thread_class_is_caught(self):
        changed = HEADER.replace(" Thread-compatible.", "")
        self.assert_caught("class_comments", {"common/base/thing.h": changed}, "Thing holds state")

    def test_class_with_a_guarded_member_and_no_thread_class_is_caught(self):
        changed = HEADER.replace(" Thread-compatible.", "").replace(
            "int count_ = 0;", "std::vector<int> counts_ ABSL_GUARDED_BY(mu_);"
        )
        self.assert_caught("class_comments", {"common/base/thing.h": changed}, "Thing holds state")

    def test_declarations_interfaces_and_enums_need_no_thread_class(self):
        changed = HEADER.replace(
            "// Counts things.",
            "class Other;\nenum class Kind { kA };\n// A way.\n"
            "class Way {\n public:\n  virtual ~Way() = default;\n};\n"
            "// Counts things.",
        )
        self.assertEqual(self.breaches("class_comments", {"common/base/thing.h": changed}), [])

    def test_script_that_does_not_parse_is_caught(self):
        self.assert_caught(
            "scripts",
            {"deploy/local/start.sh": "#!/bin/bash\nset -euo pipefail\nif true\n"},
            "does not parse",
        )

    def test_script_that_goes_on_after_errors_is_caught(self):
        self.assert_caught("scripts", {"deploy/local/start.sh": "#!/bin/bash\necho a\n"}, "lacks")


class FunctionsTest(unittest.TestCase):
    def names(self, code):
        return [(name, end - start + 1) for name, start, end in sizes.functions(code)]

    def test_finds_methods_free_functions_and_operators(self):
        code = (
            "namespace a {\nclass B {\n  int C() const {\n    return 1;\n  }\n};\n"
            "bool operator==(B a, B b) {\n}\n}\n"
        )
        self.assertEqual(self.names(code), [("C", 3), ("operator==", 2)])

    def test_member_initialisers_in_braces_do_not_hide_the_body(self):
        code = "A::A(int x)\n    : x_{x},\n      y_(2) {\n  if (x) {\n  }\n}\nint B() {\n}\n"
        self.assertEqual(self.names(code), [("A::A", 6), ("B", 2)])

    def test_tables_are_no_functions_and_lambdas_belong_to_their_function(self):
        code = (
            "constexpr int kTable[] = {1, 2};\n"
            "void F() {\n  auto g = [](int a) {\n    return a;\n  };\n}\n"
        )
        self.assertEqual(self.names(code), [("F", 5)])

    def test_tests_are_named_by_suite_and_case(self):
        self.assertEqual(self.names("TEST(Pool, GivesBack) {\n}\n"), [("Pool.GivesBack", 2)])

    def test_macros_are_passed_over(self):
        self.assertEqual(
            self.names("#define A(x) \\\n  if (x) { \\\n  }\nint B() {\n}\n"), [("B", 2)]
        )


class BlankTest(unittest.TestCase):
    def test_literals_and_comments_are_blanked_in_place(self):
        code = 'a("{"); // }\nb(\'{\', 200\'000); /* {\n */ c(R"x({")x");\n'
        blanked = blank_comments_and_literals(code)
        self.assertEqual(len(blanked), len(code))
        self.assertEqual(blanked.count("\n"), code.count("\n"))
        self.assertNotIn("{", blanked)
        self.assertNotIn("}", blanked)
        self.assertIn("200'000", blanked)


if __name__ == "__main__":
    unittest.main()
