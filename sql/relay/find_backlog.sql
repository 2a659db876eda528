-- Which subscriptions have something in the backlog, and whether suspects.
--   $1 look from this id on; null: at all of it
--
-- Without the bound, a loose scan also finds what deleted subscriptions were owed. With it, each subscription is probed, and only if
-- there is something new at all: the newest id is at the right end of its index whatever dead versions an old transaction keeps.
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
    select backlog.id from outbox.backlog as backlog where backlog.id >= coalesce($1::bigint, 0) order by backlog.id desc limit 1
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
select candidate.subscription_id, kind.is_suspect, first.id as first_id, (select newest.id from newest) as newest_id
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
