"""How sekisho-mini is made: data, tokenizer, training, export and measurement."""
