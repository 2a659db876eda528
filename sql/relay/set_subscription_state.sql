-- Record the state of a subscription. Nothing is written while the row is locked, or when its state
-- is not $4: the relay checks the subscription again later.
--   $1 subscription   $2 new state   $3 reason   $4 state that it must have now
update outbox.subscriptions as subscription
   set state = $2::text,
       state_reason = $3::text
 where subscription.id = any (array(
           select judged.id
             from outbox.subscriptions as judged
            where judged.id = $1::bigint
              and judged.state = $4::text
              for update skip locked))
returning subscription.name
