//! Trees against a model, alone and shared.
