-- Which database this outbox belongs to, and how a copy of it is taken into use. A relay that finds
-- itself in another database than the one recorded here sends nothing until outbox.adopt is called:
-- a copy would send what the original sends.

-- Without a key, so that tools which copy tables row by row, such as pg_repack, leave it alone; and
-- with a replica identity, so that a publication for all tables forbids no update.
create table outbox.identity (
    -- null: no relay has run yet; the first one records what it finds
    system_identifier bigint,
    database_oid      oid,
    environment       text,               -- relay.environment, for copies of the files
    timeline          integer,            -- a promotion changes it
    -- why nothing may be sent although all of this fits: the database was set back in place
    set_back          text,
    -- the transaction that wrote this row. A restored dump keeps it and writes the row in another
    recorded_by       xid8    not null default pg_current_xact_id()
);
create unique index identity_only_row on outbox.identity ((true));
alter table outbox.identity replica identity full;
insert into outbox.identity default values;

-- The timeline of the server; null on a standby, and where a provider does not tell.
create function outbox_internal.timeline() returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    if pg_is_in_recovery() then
        return null;
    end if;
    return ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer;
exception when others then
    return null;
end;
$$;

-- The database that this is.
create view outbox.here as
    select control.system_identifier, base.oid as database_oid,
           outbox_internal.timeline() as timeline
      from pg_control_system() as control
      join pg_database as base on base.datname = current_database();

create function outbox_internal.record_writer() returns trigger
language plpgsql as $$
begin
    new.recorded_by := pg_current_xact_id();
    return new;
end;
$$;
create trigger record_writer before update on outbox.identity
    for each row execute function outbox_internal.record_writer();
comment on table outbox.identity is
    'The database that this outbox belongs to. See outbox.adopt.';

-- Whether a row was written by this transaction, and not by a restore.
create function outbox_internal.is_written_by(row_xmin xid, xact xid8) returns boolean
language sql immutable strict parallel safe as $$
    select row_xmin::text::bigint = xact::text::bigint % 4294967296
$$;

do $$
begin
    if not (select outbox_internal.is_written_by(identity.xmin, identity.recorded_by)
              from outbox.identity as identity) then
        raise exception 'outbox.identity cannot be written inside a savepoint'
            using hint = 'Run the migrations without savepoints and exception blocks.';
    end if;
end
$$;

-- Take a copy of this outbox, or an outbox that was set back, into use. Nobody may publish while it
-- runs. Transaction ids of another cluster mean nothing here: after a restore each event gets a new
-- one, which says only whether it is routed. A backfill tells events that it must send from those
-- that were routed to it, so there is one number for each.
create function outbox.adopt(keep_pending boolean, environment text default null)
returns table (events bigint, deliveries bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    was         outbox.cursor;
    kept        outbox.identity;
    is_restored boolean;
    this        xid8 := pg_current_xact_id();
    pending     bigint;
    owed        bigint;
    is_ours     boolean;                  -- by what the server says of itself
    first_xid   constant bigint := 3;     -- of what is routed: older than every transaction
begin
    perform set_config('lock_timeout', '10s', true);
    lock table outbox.identity, outbox.cursor, outbox.starts, outbox.replays, outbox.pages,
               outbox.backlog, outbox.deliveries, outbox.events in share row exclusive mode;
    select * into strict was from outbox.cursor as one order by one.step desc limit 1;
    select identity.* into strict kept from outbox.identity as identity;
    select not outbox_internal.is_written_by(identity.xmin, identity.recorded_by)
           or was.low > (select sequence.last_value from outbox.events_position_seq as sequence)
           or pg_snapshot_xmax(was.settled) > pg_snapshot_xmax(pg_current_snapshot())
      into strict is_restored
      from outbox.identity as identity;

    select not is_restored and kept.set_back is null
           and coalesce(kept.system_identifier = here.system_identifier
                        and kept.database_oid = here.database_oid, true)
      into strict is_ours
      from outbox.here as here;

    if is_ours and kept.environment is not distinct from coalesce(adopt.environment,
                                                                  kept.environment) then
        raise exception using errcode = '22023',
            message = 'there is nothing to adopt: the outbox belongs to this database';
    elsif is_ours and exists (select from outbox.relays as relay
                               where relay.seen_at > now() - interval '30 seconds') then
        raise exception using errcode = '22023',
            message = format('environment: relays of %L run in this database; as %L they would '
                             'send nothing', kept.environment, adopt.environment),
            hint = 'Use the configuration of the relays. To rename the environment, stop them and '
                   'wait 30 s.';
    end if;
    if is_restored then
        update outbox.events as event
           set xid = case when not (pg_visible_in_snapshot(event.xid, was.settled)
                                    or was.window_end is not null
                                       and event.position <= was.page_after
                                       and pg_visible_in_snapshot(event.xid, was.window_end))
                            -- it was published here, after the restore
                            or outbox_internal.is_written_by(event.xmin, event.xid)
                            or event.position > greatest(was.low + 1, was.page_after)
                          then this
                          else (first_xid
                                + (select count(*)
                                     from outbox.starts as start
                                    where start.settled is not null
                                      and not pg_visible_in_snapshot(event.xid, start.settled)
                                      and not coalesce(
                                              event.position <= start.page_after
                                              and pg_visible_in_snapshot(event.xid,
                                                                         start.window_end),
                                              false)))::text::xid8
                          end;
        update outbox.starts as start
           set settled = format('%1$s:%1$s:', first_xid + ranked.number)::pg_snapshot,
               window_end = null, page_after = null
          from (select one.subscription_id,
                       row_number() over (order by pg_snapshot_xmax(one.settled),
                                                   one.page_after nulls first) as number
                  from outbox.starts as one
                 where one.settled is not null) as ranked
         where start.subscription_id = ranked.subscription_id;
        -- What is routed by now; of that, what lies up to `until_position`.
        update outbox.replays as replay
           set settled = format('%1$s:%1$s:', first_xid + 1
                                              + (select count(*) from outbox.starts))::pg_snapshot,
               window_end = null, page_after = null;
        perform setval('outbox.events_position_seq',
                       greatest(sequence.last_value, was.low + 1,
                                (select max(event.position) from outbox.events as event)))
           from outbox.events_position_seq as sequence;
        select count(*) into strict pending from outbox.events as event where event.xid = this;
        -- Relays reload what was changed by a transaction that they have not seen.
        update outbox.subscriptions as subscription set changed = this
         where subscription.changed > this;
        update outbox.event_types as type set changed = this where type.changed > this;
        delete from outbox.beginnings;  -- their transaction ids were those of the original
        update outbox.forgotten set xid = null;  -- and tokens from there are not taken here
        delete from outbox.retention_marks;
    else
        select count(*) into strict pending
          from outbox.events as event
         where event.xid >= pg_snapshot_xmin(was.settled)
           and not pg_visible_in_snapshot(event.xid, was.settled)
           and (was.window_end is null or event.position > was.page_after
                or not pg_visible_in_snapshot(event.xid, was.window_end));
    end if;

    select coalesce(sum(part.owed), 0)::bigint into strict owed
      from (select count(*) as owed from outbox.deliveries
            union all
            select sum(outbox_internal.count_positions(backlog.positions))
              from outbox.backlog as backlog
            union all
            select count(*)
              from outbox.pages as page
             cross join lateral outbox_internal.left_of(page)) as part;
    if keep_pending then
        update outbox.pages set due_at = clock_timestamp(), lease_token = gen_random_uuid();
        update outbox.deliveries set due_at = clock_timestamp(), lease_token = null
         where lease_token is not null;
    else
        update outbox.replays as replay
           set state = 'cancelled', ended_at = clock_timestamp(),
               queued = replay.queued - (select count(*) from outbox.deliveries as delivery
                                          where delivery.replay_id = replay.id)
         where replay.state in ('running', 'paused');
        delete from outbox.pages;
        delete from outbox.backlog;
        delete from outbox.deliveries;
        delete from outbox.starts;
        delete from outbox.parked_keys;
        delete from outbox.routed_early;
        update outbox.events as event set xid = first_xid::text::xid8 where event.xid = this;
    end if;
    if is_restored or not keep_pending then
        -- Transactions that are open have published nothing yet, and may.
        update outbox.cursor as cursor
           set step = cursor.step + 1,
               settled = (select format('%s:%s:%s', coalesce(min(open.xid::text::bigint),
                                                             this::text::bigint), this,
                                        string_agg(open.xid::text, ',' order by open.xid))
                            from pg_snapshot_xip(pg_current_snapshot()) as open (xid)
                           where open.xid < this)::pg_snapshot,
               low = (select sequence.last_value - 1
                        from outbox.events_position_seq as sequence),
               low_xid = this, window_end = null, window_low = null, window_low_xid = null,
               page_after = null, page_until = null;
    end if;
    delete from outbox.order_leases;
    delete from outbox.relay_subscriptions;
    delete from outbox.subscription_health;
    delete from outbox.relays;
    delete from outbox.gateways;
    update outbox.identity as identity
       set system_identifier = here.system_identifier, database_oid = here.database_oid,
           timeline = here.timeline, set_back = null,
           environment = coalesce(adopt.environment, identity.environment)
      from outbox.here as here;
    if not (select outbox_internal.is_written_by(identity.xmin, identity.recorded_by)
              from outbox.identity as identity) then
        raise exception 'outbox.adopt cannot be called inside a savepoint or an exception block';
    end if;
    perform outbox_internal.record_audit(
                'adopted', null,
                jsonb_build_object('keep_pending', keep_pending,
                                   'environment', adopt.environment, 'events', pending),
                owed);
    return query select pending, owed;
end;
$$;
comment on function outbox.adopt is
    'Take a copy of this outbox into use: a restored dump, a copied or upgraded cluster. Relays '
    'send nothing there before. keep_pending: deliver what the original had not delivered; false: '
    'deliver none of it. Returns how many events were not routed and how many deliveries waited.';

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
