"""The console's API. Basic authentication throughout; the user's name is what the audit log says.

Every POST and PUT takes JSON and must carry the header `X-Requested-With: crm-replay-console` (any value will do: a
foreign page cannot set it without a CORS pre-flight, which is refused). Refusals are the error envelope
`{"status": "error", "resp_code", "message", "meta": {"request_id"}}`; validation errors are 400 `VALIDATION_ERROR` with
`meta.errors: [{field, message}]`. Models: console_models.py. Account ids travel in the query or the body, never in the
path: they may hold any printable character.

    GET  /console/api/session                                            -> Session
    GET  /console/api/accounts?search=&cursor=&limit=                    -> AccountList
    GET  /console/api/account?account=                                   -> AccountDetail (never 404: not_started)
    GET  /console/api/audit-log?account=&limit=                          -> AuditEntries
    GET  /console/api/dead-letters?account=&cause=&cursor=&limit=        -> LetterPage
    GET  /console/api/dead-letter?account=&offset=                       -> LetterDetail
    GET  /console/api/events?account=                                    -> text/event-stream, see below
    POST /console/api/trigger      TriggerRequest                        -> 201 ActionDone (job)
    POST /console/api/halt         AccountRequest                        -> 200 ActionDone (job)
    POST /console/api/resume       AccountRequest                        -> 200 ActionDone (job)
    POST /console/api/rerun        AccountRequest                        -> 200 ActionDone (job)
    POST /console/api/rollback     RollbackRequest                       -> 200 RollbackDone, when all is gone
    POST /console/api/verify       AccountRequest                        -> 202 ActionDone (task)
    POST /console/api/preflight    AccountRequest                        -> 202 ActionDone (task)
    POST /console/api/dlq-retry    RetryRequest                          -> 202 ActionDone (task)
    PUT  /console/api/flag         FlagRequest                           -> 200 Flag

Events. With `account`: `event: account`, `data:` an AccountDetail, at once and whenever it has changed. Without:
`event: accounts`, `data:` an AccountsChanged, all accounts at once (`complete: true`), later the changed ones. Looked at
once a second. Every event has an `id`; a reconnect with `Last-Event-ID` gets nothing before something has changed if it
has missed nothing. A comment line every 15 s keeps proxies from closing. `event: bye` comes before the server stops; the
browser reconnects by itself. Over the limit of clients: 503 `TOO_MANY_CLIENTS`, and the page should poll instead.

A long roll back: the answer comes when all is gone; `rollback` in AccountDetail shows how far it is. If the connection
breaks meanwhile the server goes on; asking again joins the one that runs.
"""
