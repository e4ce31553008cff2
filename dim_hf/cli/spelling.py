"""How options are spelled: with dashes, or as the fields of the training arguments, with underscores."""

# `context_settings` of a command whose options are declared with dashes.
BOTH_SPELLINGS = {"token_normalize_func": lambda name: name.replace("_", "-")}
