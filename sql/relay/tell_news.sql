-- Tell gateways that there may be new events.
select pg_notify('outbox_news', '')
