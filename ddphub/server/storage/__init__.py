"""Where the bytes of checkpoints are: a local directory, or an object storage that speaks S3.

```
a file arrives --arrived/part_url--> its parts are there --prepare/assemble--> Prepared --place--> a blob
```

What is slow (joining, reading back, sending) is done before a commit's transaction; `place` is quick and done inside of
it. So a blob counts when its row in the database does, and nothing else needs to know who is at work on what.
"""
