# The CUDA kernels and the operators on them for the CPU, for tests only: target `emulator`.
find_package(boost_context REQUIRED CONFIG)
file(GLOB machine_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cuda_emulator/*.cpp)
file(GLOB kernel_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cuda/recurrence.cu
                                           ${CMAKE_SOURCE_DIR}/csrc/cuda/instantiations/*.cu)
set_source_files_properties(${kernel_sources} PROPERTIES LANGUAGE CXX)

add_library(cnnlstm_emulator_machine OBJECT ${machine_sources})
target_link_libraries(cnnlstm_emulator_machine PUBLIC Boost::context)
target_include_directories(cnnlstm_emulator_machine PUBLIC csrc)
target_compile_options(cnnlstm_emulator_machine PUBLIC -O2 -g)
target_link_options(cnnlstm_emulator_machine INTERFACE "LINKER:-rpath,$<TARGET_FILE_DIR:Boost::context>")

add_library(cnnlstm_emulator_kernels OBJECT ${kernel_sources})
target_link_libraries(cnnlstm_emulator_kernels PUBLIC cnnlstm_emulator_machine cnnlstm_plan)

add_library(cnnlstm_emulator SHARED ${cuda_driver_sources} csrc/torch/call.cpp csrc/torch/emulator/ops.cpp)
target_include_directories(cnnlstm_emulator PRIVATE ${CMAKE_BINARY_DIR}/generated)
target_include_directories(cnnlstm_emulator SYSTEM PRIVATE ${TORCH_INCLUDE_DIRS})
target_compile_definitions(cnnlstm_emulator PRIVATE _GLIBCXX_USE_CXX11_ABI=${TORCH_CXX11_ABI})
target_link_directories(cnnlstm_emulator PRIVATE ${TORCH_LIBRARY_DIR})
target_link_libraries(cnnlstm_emulator PRIVATE cnnlstm_emulator_kernels cnnlstm_emulator_machine cnnlstm_plan torch_cpu c10)

file(GLOB test_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/tests/emulator_*.cpp)
add_executable(emulator_test ${test_sources})
target_link_libraries(emulator_test PRIVATE cnnlstm_emulator_kernels cnnlstm_emulator_machine cnnlstm_plan)
set_target_properties(emulator_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_LIBRARY_OUTPUT_DIRECTORY})

add_custom_target(emulator DEPENDS cnnlstm_emulator emulator_test)
