-- Make the subscription of a handler of this program, or follow the topics it has now. What else an operator set stays.
--   $1 name   $2 topics
select outbox.declare_handler($1::text, $2::text[]);
