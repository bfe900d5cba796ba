"""Perplexity under the policy in force: on which text, by which route, against which baseline.

base                  nouns: a measurement, its difference from the baseline
texts                 our own held-out text and the user's
llama_hidden          route a: hidden states of a second llama.cpp (a child process), times the output matrix
llama_probabilities   route b: the running llama.cpp worker, one request for each position; slow, a cross-check
torch_route           the torch worker measures itself, between the rounds of its traffic
vllm_route            a vLLM server tells the logprobs of a prompt
compare               whether two routes agree
baselines             what was measured at 16 bits, kept
measure               the one that fits an engine, and the difference from its baseline
"""
