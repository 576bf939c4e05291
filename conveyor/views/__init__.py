"""What a person looks at: pages and parts of pages about a pipeline.

Law: values in, text out.  Nothing here asks a process, and nobody imports it before something is to be shown.
Whatever comes from a user is escaped, and an item is shown as `redact` shows it.  No page refers to anything outside.
"""
