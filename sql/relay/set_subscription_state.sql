-- A relay's judgement of a subscription. Skipped while somebody is editing the row, or when it is no longer in a state
-- that the judgement was about: it will be judged again.
--   $1 subscription   $2 state   $3 reason   $4 only if it is in this state now
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
