"""The Messages protocol (`/v1/messages`, `/v1/messages/count_tokens`), server side.

What is read and quietly left unused, because an answer without it is still the answer that was asked for:
`cache_control` (anywhere), `betas`, `context_management`, `service_tier`, `inference_geo`, `speed`, `diagnostics`,
`billing_policy`, `fallbacks`, `fallback_credit_token`, `user_profile_id`, `workspace_id`, and keys below the top of
the body that this server does not know (`output_config.task_budget`, `thinking.block_binding`, …). What would change
the answer is refused by name: `mcp_servers`, `container`, `thread`, `compaction`, uploaded files, tools that only
their vendor can run. Any other unknown key at the top of the body is an error that names it.
"""

from sekisho.wire.messages.decode import decode, decode_count
from sekisho.wire.messages.encoder import MessagesEncoder, encode_count, encoder
from sekisho.wire.messages.errors import error_body

__all__ = ["MessagesEncoder", "decode", "decode_count", "encode_count", "encoder", "error_body"]
