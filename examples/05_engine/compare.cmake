# cmake -D programs= -D engine= -D isas= -D model= -D work= -P compare.cmake
# Quantizes a model and fails unless the engine continues a text with it as generate does.
file(REMOVE_RECURSE ${work})
set(prompt "And God said")
execute_process(COMMAND ${programs}/quantize_model ${model} --calibration ${model}/calibration.txt
    --evaluation ${model}/evaluation.txt --samples 4 --eval-windows 1 --no-float-baseline
    --scheme fixed_zero --bits 4 --group-size 32 --output ${work}
  OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${programs}/generate ${work} ${prompt} --tokens 100
  OUTPUT_VARIABLE expected COMMAND_ERROR_IS_FATAL ANY)
foreach(isa IN LISTS isas)
  foreach(threads 1 3)
    execute_process(COMMAND ${engine} ${work} ${prompt} 100 ${threads} ${isa}
      OUTPUT_VARIABLE text ERROR_VARIABLE said RESULT_VARIABLE result)
    if(said MATCHES "cannot run kernels for")
      continue()
    endif()
    string(FIND "${expected}" "${text}\n" place)
    string(LENGTH "${text}" length)
    if(NOT result EQUAL 0 OR NOT place EQUAL 0 OR length LESS 60)
      message(FATAL_ERROR "${isa}, ${threads} threads: ${said}\n${text}\nis not what generate made:\n${expected}")
    endif()
    message("${said}")
    set(ran TRUE)
  endforeach()
endforeach()
if(NOT ran)
  message(FATAL_ERROR "No ISA of ${isas} ran")
endif()
# A prompt that does not fit, and a model that is not quantized.
execute_process(COMMAND ${engine} ${model} ${prompt} ERROR_VARIABLE said RESULT_VARIABLE result OUTPUT_QUIET)
if(result EQUAL 0 OR NOT said MATCHES "config.json: not quantized")
  message(FATAL_ERROR "An unquantized model: ${said}")
endif()
string(REPEAT "In the beginning " 40 prompt)
execute_process(COMMAND ${engine} ${work} ${prompt} ERROR_VARIABLE said RESULT_VARIABLE result OUTPUT_QUIET)
if(result EQUAL 0 OR NOT said MATCHES "more tokens than the model has positions")
  message(FATAL_ERROR "A prompt of 680 tokens: ${said}")
endif()
