"""The intermediate representation: types, operations, text, verification, passes."""
