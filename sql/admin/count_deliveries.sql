-- Count waiting deliveries: all that match, and those that outbox.retry would take.
--   $1 subscription   $2 topic pattern   $3 event   $4 LIKE pattern for reason, answer or status of
--   the last attempt (null: any)
--
-- Without $2 to $4 the ranges of the backlog are counted without a look at each event.
select coalesce(sum(part.matching), 0)::bigint as matching,
       coalesce(sum(part.retriable), 0)::bigint as retriable
  from (select count(*) as matching,
               count(*) filter (where not waiting.asked
                                  and ($3::uuid is not null or waiting.owed_since <= now()))
                   as retriable
          from outbox.matching_deliveries($1::text, $2::text, $3::uuid, $4::text) as waiting
         where $2::text is not null or $3::uuid is not null or $4::text is not null
        union all
        select count(*), count(*) filter (where not delivery.asked and delivery.owed_since <= now())
          from outbox.deliveries as delivery
          join outbox.subscriptions as subscription on subscription.id = delivery.subscription_id
         where $2::text is null and $3::uuid is null and $4::text is null
           and ($1::text is null or subscription.name = $1::text)
           and (delivery.lease_token is null or delivery.due_at <= now())
        union all
        select count(*), count(*)
          from outbox.pages as page
         cross join lateral outbox_internal.left_of(page) as pair
          join outbox.subscriptions as subscription on subscription.id = pair.subscription_id
         where $2::text is null and $3::uuid is null and $4::text is null
           and ($1::text is null or subscription.name = $1::text)
           and page.due_at <= now()
        union all
        select size.all_of_them, size.all_of_them
          from (select sum(outbox_internal.count_positions(backlog.positions)) as all_of_them
                  from outbox.backlog as backlog
                  join outbox.subscriptions as subscription
                    on subscription.id = backlog.subscription_id
                 where $2::text is null and $3::uuid is null and $4::text is null
                   and ($1::text is null or subscription.name = $1::text)) as size
       ) as part;
