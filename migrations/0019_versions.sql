-- Which programs may use this schema, and how an outbox is removed.

-- A program that is older than the schema runs if it has this migration at least. A migration that
-- an older program cannot run beside replaces this view and names itself; others leave it alone.
create view outbox.compatibility as
    select 18::bigint as oldest_program;
comment on view outbox.compatibility is
    'oldest_program: the newest migration of the oldest program that may use this schema.';

-- Removes the outbox from this database. The roles stay: they belong to the whole server.
create function outbox.uninstall(confirm text, force boolean default false) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    owner    text;
    running  text;
    captured regclass;
    subject  text := current_database();
begin
    select pg_get_userbyid(nspowner) into owner
      from pg_namespace
     where nspname = 'outbox';
    if not pg_has_role(owner, 'usage') then
        raise exception using errcode = '42501',
            message = format('only %s, who owns the schema outbox, may remove it', owner);
    end if;
    if confirm is distinct from subject then
        raise exception using errcode = '22023',
            message = 'confirm: is not the name of this database',
            hint = format('Call outbox.uninstall(%L). It removes the outbox of this database with '
                          'all of its events.', subject);
    end if;
    if not coalesce(force, false) then
        select string_agg(relay.name, ', ' order by relay.name) into running
          from outbox.relays as relay
         where relay.seen_at > now() - interval '15 seconds';
        if running is not null then
            raise exception using errcode = '55006',
                message = format('relays run: %s', running),
                hint = 'Stop them first.';
        end if;
        if exists (select from outbox.owed)
           or exists (select from outbox.log_status as log where log.unrouted > 0)
           or exists (select from outbox.dead_letters) then
            raise exception using errcode = '55000',
                message = 'not all events were delivered, or some are dead letters',
                hint = format('See outbox.subscription_status and outbox.log_status. To remove '
                              'them too: outbox.uninstall(%L, force => true).', subject);
        end if;
        if to_regclass('outbox.inbox') is not null then
            raise exception using errcode = '55000',
                message = 'this database has an inbox in the schema outbox',
                hint = format('To remove it too: outbox.uninstall(%L, force => true).', subject);
        end if;
    end if;
    for captured in
        select distinct attached.tgrelid::regclass
          from pg_trigger as attached
          join pg_proc as proc
            on proc.oid = attached.tgfoid
           and proc.pronamespace = 'outbox_internal'::regnamespace
          join pg_class as class
            on class.oid = attached.tgrelid
           and class.relnamespace not in ('outbox'::regnamespace, 'outbox_internal'::regnamespace)
         where not attached.tgisinternal
           and attached.tgparentid = 0
    loop
        perform outbox.release(captured);
    end loop;
    drop schema outbox, outbox_internal cascade;
end;
$$;
comment on function outbox.uninstall is
    'Remove the outbox from this database: captures, bridges and both schemas with all events. '
    'For the owner of the schema. confirm: the name of the database. Refused while a relay runs, '
    'while something is not delivered, and where there are dead letters or an inbox, unless '
    'force is true. Not undone after the commit.';

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
