"""Items as the core knows them: pieces of opaque payloads, and how many outputs each item gave."""
