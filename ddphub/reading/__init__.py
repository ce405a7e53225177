"""Reading a hub from a program: its models, their metrics, events and checkpoints.

```python
model = ddphub.Hub("http://127.0.0.1:8765").model("...")
metrics = pandas.DataFrame(model.metrics())
model.download("best", to="best.pt")
```

Every list is an iterator that asks for the next page when it is needed. Only a hub of `ddphub serve` can be read.
"""
