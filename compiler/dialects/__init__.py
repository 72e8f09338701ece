"""The operations: `graph` (tensors) and `loops` (structured code over memory)."""
