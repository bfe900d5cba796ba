"""The Ollama protocol, server side: one module per endpoint.

`chat` and `generate` each have `decode`, `encoder` and `error_body`, as `wire.base` wants; `embed` reads and
answers `/api/embed` and the older `/api/embeddings`; `models` answers `/api/tags`, `/api/show`, `/api/ps` and
`/api/version`. A request without words asks only that the model be loaded: `is_load(turn)` tells it, no engine is
asked, and the encoder answers `done_reason: "load"` by itself.

What is read and left unused: `keep_alive`, `truncate`, `shift`, and in `options` what belongs to the loading of a
model, which is settled here by the server's own configuration: `num_ctx`, `num_batch`, `num_gpu`, `main_gpu`,
`num_thread`, `numa`, `low_vram`, `f16_kv`, `vocab_only`, `logits_all`, `embedding_only`, `use_mmap`, `use_mlock`,
and `num_keep`, `penalize_newline`, `tfs_z`. What would change the answer is refused by name: `template`,
`context`, image generation (`width`, `height`, `steps`). Any other key at the top or in `options` is an error that
names it; inside messages and tools unknown keys are passed over.
"""
