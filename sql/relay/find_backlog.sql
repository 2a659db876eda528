-- Find the subscriptions with rows in the backlog, separately for suspects and others.
--   $1 smallest id to look at; null: all
--
-- Without $1, a scan that jumps from subscription to subscription also finds rows of deleted
-- subscriptions. With $1, each subscription is looked up, but only if the backlog has such an id at
-- all. The newest id is found at the right end of its index, however many dead rows an old
-- transaction keeps there.
with recursive outstanding as (
    (select backlog.subscription_id
       from outbox.backlog as backlog
      where $1::bigint is null
      order by backlog.subscription_id
      limit 1)
    union all
    select (select backlog.subscription_id
              from outbox.backlog as backlog
             where backlog.subscription_id > outstanding.subscription_id
             order by backlog.subscription_id
             limit 1)
      from outstanding
     where outstanding.subscription_id is not null
),
newest as materialized (
    select backlog.id
      from outbox.backlog as backlog
     where backlog.id >= coalesce($1::bigint, 0)
     order by backlog.id desc
     limit 1
),
candidate as (
    select outstanding.subscription_id
      from outstanding
     where outstanding.subscription_id is not null
    union all
    select subscription.id
      from outbox.subscriptions as subscription
     where $1::bigint is not null
       and exists (select from newest)
)
select candidate.subscription_id, kind.is_suspect, first.id as first_id,
       (select newest.id from newest) as newest_id
  from candidate
 cross join (values (false), (true)) as kind (is_suspect)
 cross join lateral (
       select backlog.id
         from outbox.backlog as backlog
        where backlog.subscription_id = candidate.subscription_id
          and backlog.is_suspect = kind.is_suspect
          and backlog.id >= coalesce($1::bigint, 0)
        order by backlog.id
        limit 1) as first
