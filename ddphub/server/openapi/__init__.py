"""The API's document (OpenAPI 3.1): what every request may say and what it is answered.

| module | what |
| --- | --- |
| requests | the bodies that requests have |
| answers | what answers say |
| operations | which request has which of them |
| document | all of it in one |

The hub checks bodies by hand, with messages that say what to do; these models describe what passes. A test sends a real
hub what they allow and what they forbid.
"""
