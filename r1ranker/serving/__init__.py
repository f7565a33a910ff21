"""A trained ranker behind the APIs of rerankers over HTTP (extra `serve`)."""
