-- Whether a relay lives that attends the doorbell: it has reported within 15 s.
select exists (select from outbox.relays as relay
                where relay.seen_at > clock_timestamp() - interval '15 seconds')
