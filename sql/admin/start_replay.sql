-- Send events of the log again to a subscription. Returns the id of the replay.
--   $1 subscription   $2 since (null: only with $5)   $3 until (null: now)
--   $4 topic pattern   $5 event (null: any)   $6 rate (null: none)
select outbox.replay(
           subscription => $1::text,
           since        => $2::timestamptz,
           until        => $3::timestamptz,
           topic        => $4::text,
           event        => $5::uuid,
           rate         => $6::text);
