"""The web pages: a chat page that is served from the wheel, needs no build step and asks nobody else for anything."""
