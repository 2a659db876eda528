-- The highest position that was drawn.
select sequence.last_value from outbox.events_position_seq as sequence
