"""Figures against thresholds that were approved beforehand, and the server's own records."""
