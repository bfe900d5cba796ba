"""Every address of the API, in one table: what the router, the OpenAPI document and the docs' test read."""

from sekisho.gateway import escalations, generation, listing, openapi, responses, status
from sekisho.gateway.router import Route

ROUTES: tuple[Route, ...] = (
    Route("POST", "/v1/chat/completions", generation.chat_completions, "Chat (OpenAI)", "chat"),
    Route("POST", "/v1/think", generation.think_first, "Chat that thinks in parts and shows only the last one", "chat"),
    Route("POST", "/v1/completions", generation.text_completions, "Continue a text (OpenAI, legacy)", "chat"),
    Route("POST", "/v1/responses", responses.create, "Responses with state (OpenAI)", "chat"),
    Route("GET", "/v1/responses/{response_id}", responses.retrieve, "A stored response", "chat"),
    Route("DELETE", "/v1/responses/{response_id}", responses.delete, "Forget a stored response", "chat"),
    Route("POST", "/v1/responses/{response_id}/cancel", responses.cancel, "End a running response", "chat"),
    Route("GET", "/v1/responses/{response_id}/input_items", responses.input_items, "What a response was given", "chat"),
    Route("POST", "/v1/messages", generation.anthropic_messages, "Messages (Anthropic)", "chat"),
    Route("POST", "/v1/messages/count_tokens", generation.count_tokens, "Count a prompt's tokens (Anthropic)", "chat"),
    Route("POST", "/v1/embeddings", listing.embed, "Embeddings (OpenAI)", "embeddings"),
    Route("GET", "/v1/models", listing.list_models, "Models that the key may use"),
    Route("GET", "/v1/models/{model}", listing.show_model, "One model"),
    Route("POST", "/api/chat", generation.ollama_chat, "Chat (Ollama)", "chat"),
    Route("POST", "/api/generate", generation.ollama_generate, "Generate (Ollama)", "chat"),
    Route("POST", "/api/embed", listing.ollama_embed, "Embeddings (Ollama)", "embeddings"),
    Route("POST", "/api/embeddings", listing.ollama_embeddings, "Embeddings (Ollama, older)", "embeddings"),
    Route("GET", "/api/tags", listing.ollama_tags, "Models (Ollama)"),
    Route("POST", "/api/show", listing.ollama_show, "One model (Ollama)"),
    Route("GET", "/api/ps", listing.ollama_ps, "Loaded models (Ollama)"),
    Route("GET", "/api/version", listing.ollama_version, "Version (Ollama)"),
    Route("GET", "/v1/escalations", escalations.list_tickets, "Requests that wait for a person"),
    Route("GET", "/v1/escalations/{ticket_id}", escalations.show_ticket, "One of them"),
    Route("POST", "/v1/escalations/{ticket_id}/decision", escalations.decide_ticket, "Approve, answer or deny"),
    Route("POST", "/escalation/{ticket_id}", escalations.redeem_link, "What a single-use link decides", public=True),
    Route("GET", "/healthz", status.healthz, "The process lives", public=True),
    Route("GET", "/readyz", status.readyz, "A model can answer", public=True),
    Route("GET", "/metrics", status.metrics, "Prometheus metrics", public=True),
    Route("GET", "/openapi.json", openapi.document, "This list, for machines", public=True),
)
