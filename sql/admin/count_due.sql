-- How much a relay could do now: events that are not routed, replays without a rate that have not
-- read all they should, and deliveries that are due or in the hands of a relay, of subscriptions
-- that are neither paused nor unusable.
with usable as (
    select subscription.id
      from outbox.subscriptions as subscription
     where subscription.active
       and subscription.state in ('pending', 'ok')
       and subscription.id not in (select pause.subscription_id from outbox.asked_pauses as pause)
)
select (log.unrouted
        + (select count(*)
             from outbox.deliveries as delivery
             join usable on usable.id = delivery.subscription_id
            where delivery.due_at <= clock_timestamp()
               or delivery.lease_token is not null
               -- the next of a key whose events before it were delivered
               or delivery.due_at = outbox_internal.never()
                  and delivery.position = (
                      select min(first.position)
                        from outbox.deliveries as first
                       where first.subscription_id = delivery.subscription_id
                         and first.key = delivery.key)
                  and not exists (select from outbox.parked_keys as parked
                                   where parked.subscription_id = delivery.subscription_id
                                     and parked.key = delivery.key))
        + (select count(*)
             from outbox.pages as page
            cross join lateral outbox_internal.left_of(page) as pair
             join usable on usable.id = pair.subscription_id)
        + (select count(*)
             from outbox.replays as replay
             join usable on usable.id = replay.subscription_id
            where replay.state = 'running'
              and replay.position < replay.until_position
              and replay.rate is null)
        + (select coalesce(sum(outbox_internal.count_positions(backlog.positions)), 0)
             from outbox.backlog as backlog
             join usable on usable.id = backlog.subscription_id))::bigint
  from outbox.log_status as log;
