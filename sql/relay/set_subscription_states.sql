-- Record states of subscriptions. Nothing is written about a subscription whose row is locked, or
-- whose state or version is not the one that it must have: the relay checks it again later. A row
-- that must be `ok` may be `pending` and the other way round: another relay may have judged it.
--   $1 subscriptions; $2 to $6 are in their order
--   $2 new states   $3 reasons   $4 states that they must have now
--   $5 sinks and $6 configs that they must have now, as text
--   $7 when they must have been changed or resumed last, as relays read it
update outbox.subscriptions as subscription
   set state = ($2::text[])[array_position($1::bigint[], subscription.id)],
       state_reason = ($3::text[])[array_position($1::bigint[], subscription.id)],
       -- what was committed before is held, wherever routing stands
       owed_until = case ($2::text[])[array_position($1::bigint[], subscription.id)]
                    when 'gone' then (select sequence.last_value
                                        from outbox.events_position_seq as sequence)
                    end
 where subscription.id = any (array(
           select judged.id
             from outbox.subscriptions as judged
            where judged.id = any ($1::bigint[])
              and (judged.state = ($4::text[])[array_position($1::bigint[], judged.id)]
                   or judged.state in ('pending', 'ok')
                      and ($4::text[])[array_position($1::bigint[], judged.id)]
                          in ('pending', 'ok'))
              and judged.state <> ($2::text[])[array_position($1::bigint[], judged.id)]
              and judged.sink = ($5::text[])[array_position($1::bigint[], judged.id)]
              and judged.config = ($6::text[])[array_position($1::bigint[], judged.id)]::jsonb
              and least(greatest(judged.resumed_at, '2000-01-01Z'), '2200-01-01Z')
                  is not distinct from
                  ($7::timestamptz[])[array_position($1::bigint[], judged.id)]
            order by judged.id
              for update skip locked))
returning subscription.id
