-- Let the server end a statement soon after its client has gone. Fails where the server's system
-- cannot find that out.
select set_config('client_connection_check_interval', '1s', false);
