-- Limit how fast all subscriptions of an organization together are sent to.
--   $1 organization
--   $2 rate, such as 100/s; null: remove the limit
select outbox.limit_organization($1::text, $2::text)
