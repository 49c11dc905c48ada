// A function that is called during a call, without owning it.
#pragma once

#include <type_traits>
#include <utility>

namespace lm::tokenizers {

template <class Signature>
class function_ref;

/// Refers to a function object that must outlive it: std::function without its allocation.
template <class... Arguments>
class function_ref<void(Arguments...)> {
  void const* object_;
  void (*call_)(void const*, Arguments...);

 public:
  template <class Function>
  requires(!std::is_same_v<std::remove_cvref_t<Function>, function_ref>)
      // NOLINTNEXTLINE(google-explicit-constructor): a lambda is passed as it is
      function_ref(Function const& function)
      : object_(&function), call_([](void const* object, Arguments... arguments) {
          (*static_cast<Function const*>(object))(std::forward<Arguments>(arguments)...);
        }) {}

  void operator()(Arguments... arguments) const { call_(object_, std::forward<Arguments>(arguments)...); }
};

}  // namespace lm::tokenizers
