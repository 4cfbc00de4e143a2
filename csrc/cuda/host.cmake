# The CUDA kernels and the operators on them for the CPU, which tests alone need: target `host`.
find_package(boost_context REQUIRED CONFIG)
file(GLOB host_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cuda/host_*.cpp)
file(GLOB kernel_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cuda/recurrence*.cu)
set_source_files_properties(${kernel_sources} PROPERTIES LANGUAGE CXX)

add_library(cnnlstm_host_machine OBJECT ${host_sources})
target_link_libraries(cnnlstm_host_machine PUBLIC Boost::context)
target_include_directories(cnnlstm_host_machine PUBLIC csrc)
target_compile_options(cnnlstm_host_machine PUBLIC -O2 -g)
target_link_options(cnnlstm_host_machine INTERFACE "LINKER:-rpath,$<TARGET_FILE_DIR:Boost::context>")

add_library(cnnlstm_host_kernels OBJECT ${kernel_sources})
target_link_libraries(cnnlstm_host_kernels PUBLIC cnnlstm_host_machine cnnlstm_plan)

add_library(cnnlstm_host SHARED ${cuda_driver_sources} csrc/bindings/call.cpp csrc/bindings/host_ops.cpp)
target_include_directories(cnnlstm_host PRIVATE ${CMAKE_BINARY_DIR}/generated)
target_include_directories(cnnlstm_host SYSTEM PRIVATE ${TORCH_INCLUDE_DIRS})
target_compile_definitions(cnnlstm_host PRIVATE _GLIBCXX_USE_CXX11_ABI=${TORCH_CXX11_ABI})
target_link_directories(cnnlstm_host PRIVATE ${TORCH_LIBRARY_DIR})
target_link_libraries(cnnlstm_host PRIVATE cnnlstm_host_kernels cnnlstm_host_machine cnnlstm_plan torch_cpu c10)

file(GLOB test_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/test/host_device_*.cpp)
add_executable(host_device_test ${test_sources})
target_link_libraries(host_device_test PRIVATE cnnlstm_host_kernels cnnlstm_host_machine cnnlstm_plan)
set_target_properties(host_device_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_LIBRARY_OUTPUT_DIRECTORY})

add_custom_target(host DEPENDS cnnlstm_host host_device_test)
