# Two helpers, the only way targets are made: one library per folder, one test executable per
# source file tested.

include(GoogleTest)

# kvist_library(NAME <target> SRCS <files> [HDRS <files>] [DEPS <targets>] [UNITY])
# UNITY: fewer sources are compiled together than elsewhere, for folders of long compilations.
function(kvist_library)
  cmake_parse_arguments(ARG "UNITY" "NAME" "SRCS;HDRS;DEPS" ${ARGN})
  if(ARG_SRCS)
    add_library(${ARG_NAME} STATIC ${ARG_SRCS} ${ARG_HDRS})
    target_include_directories(${ARG_NAME} PUBLIC ${PROJECT_SOURCE_DIR})
    target_link_libraries(${ARG_NAME} PUBLIC ${ARG_DEPS} PRIVATE kvist_compile_options)
    if(ARG_UNITY)
      set_target_properties(${ARG_NAME} PROPERTIES UNITY_BUILD_BATCH_SIZE 7)
    endif()
  else()
    add_library(${ARG_NAME} INTERFACE)
    target_include_directories(${ARG_NAME} INTERFACE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${ARG_NAME} INTERFACE ${ARG_DEPS})
  endif()
endfunction()

# kvist_test(NAME <target> SRCS <files> [DEPS <targets>] [LABELS <ctest labels>]
#            [ARGS <arguments>] [TIMEOUT <seconds>])
# Labels: none runs always; "model" needs the cached model files; "tsan" marks what also runs under
# ThreadSanitizer. The target kvist_tests_LABEL builds all that carry a label.
function(kvist_test)
  cmake_parse_arguments(ARG "" "NAME;TIMEOUT" "SRCS;DEPS;LABELS;ARGS" ${ARGN})
  if(NOT KVIST_BUILD_TESTS)
    return()
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${ARG_NAME} ${ARG_SRCS})
  set_target_properties(${ARG_NAME} PROPERTIES UNITY_BUILD OFF)
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} kvist_test_main kvist_compile_options)
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME} ${ARG_ARGS} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  foreach(label IN LISTS ARG_LABELS)
    if(NOT TARGET kvist_tests_${label})
      add_custom_target(kvist_tests_${label})
    endif()
    add_dependencies(kvist_tests_${label} ${ARG_NAME})
  endforeach()
  # What may take longest begins first, so that no core waits for it at the end.
  set_tests_properties(
    ${ARG_NAME} PROPERTIES TIMEOUT ${ARG_TIMEOUT} COST ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
endfunction()
