-- Who changed which subscription or dead letters, and when.

-- One row for each call of a function, and for each subscription that was changed. It holds no
-- configuration, only the names of the fields that were changed.
create table outbox.audit (
    id           bigint      generated always as identity primary key,
    at           timestamptz not null default clock_timestamp(),
    action       text        not null,
    subscription text,                          -- its name; null: of no one or of several
    rows         bigint,                        -- deliveries or dead letters; null: does not apply
    details      jsonb       not null default '{}',
    login        text        not null,          -- session_user
    role         text        not null,          -- the role that the session had set, or its login
    application  text        not null,          -- application_name
    actor        text                           -- who asked the application; null: not said
);
comment on table outbox.audit is
    'Who changed subscriptions, dead letters and waiting deliveries, and when. Written with each '
    'change, in its transaction; only the owner of the outbox can change it.';
comment on column outbox.audit.action is
    'created, changed, paused, resumed, gone, disabled or deleted (a subscription); redriven or '
    'discarded (dead letters); retried or cancelled (deliveries); unparked (keys); replay started, '
    'replay paused, replay resumed or replay cancelled; limited (an organization); adopted (the '
    'database).';
comment on column outbox.audit.details is
    'The arguments that were given; for changed, the names of the fields; {"by": "relay"} where a '
    'relay did it.';
comment on column outbox.audit.actor is
    'Who asked the application for the change, as far as it says: the setting outbox.actor, which '
    'the API sets to the subject of a token.';
create index audit_subscription on outbox.audit (subscription, id);

-- Nobody may call it but the owner, and functions that run as the owner. It takes who did it from
-- the session, which those functions do not change.
create function outbox_internal.record_audit(
    action       text,
    subscription text   default null,
    details      jsonb  default '{}',
    rows         bigint default null
) returns bigint
language sql security definer set search_path = pg_catalog, pg_temp as $$
    insert into outbox.audit (action, subscription, rows, details, login, role, application,
                              actor)
    select record_audit.action, record_audit.subscription, record_audit.rows,
           coalesce(jsonb_strip_nulls(record_audit.details), '{}')
           || case when done.by_relay then '{"by": "relay"}'::jsonb else '{}' end,
           session_user, coalesce(nullif(current_setting('role'), 'none'), session_user),
           done.application,
           nullif(left(current_setting('outbox.actor', true), 255), '')
      from (select current_setting('application_name') as application,
                   -- as relays call themselves, or a login that may be nothing else
                   current_setting('application_name') ~ '^pgoutbox/[^/]+/'
                   and current_setting('application_name') !~ '^pgoutbox/[^/]+/(cli|api)$'
                   or coalesce((select pg_has_role(session_user, relay.oid, 'member')
                                  from pg_roles as relay where relay.rolname = 'outbox_relay')
                               and not (select pg_has_role(session_user, admin.oid, 'member')
                                          from pg_roles as admin
                                         where admin.rolname = 'outbox_admin'), false)
                       as by_relay) as done
    returning id
$$;
comment on function outbox_internal.record_audit is
    'Write a row of outbox.audit: what was done, to which subscription, with which arguments, and '
    'how many rows it took. Returns its id.';

-- So that a plain update of outbox.subscriptions is recorded too. What relays find out (pending,
-- ok, invalid) is not, nor is what only follows from a change.
create function outbox_internal.audit_subscription() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    fields text[];
begin
    if tg_op = 'INSERT' then
        perform outbox_internal.record_audit('created', new.name,
                                             jsonb_build_object('sink', new.sink));
        return null;
    elsif tg_op = 'DELETE' then
        perform outbox_internal.record_audit('deleted', old.name);
        return null;
    end if;
    select coalesce(array_agg(field.key order by field.key), '{}') into fields
      from jsonb_each(to_jsonb(new)) as field
     where field.value is distinct from to_jsonb(old) -> field.key
       and field.key not in ('active', 'state', 'state_reason', 'owed_until', 'resumed_at',
                             'created_at', 'updated_at', 'changed');
    if fields <> '{}' then
        perform outbox_internal.record_audit(
                    'changed', new.name,
                    jsonb_build_object('fields', fields,
                                       'was', case when old.name <> new.name then old.name end));
    end if;
    if old.active and not new.active then
        perform outbox_internal.record_audit('paused', new.name);
    elsif new.active and not old.active
          or fields = '{}'
             and (new.resumed_at is distinct from old.resumed_at
                  or old.state in ('gone', 'disabled')
                     and new.state not in ('gone', 'disabled')) then
        perform outbox_internal.record_audit('resumed', new.name);
    end if;
    if new.state in ('gone', 'disabled') and new.state <> old.state then
        perform outbox_internal.record_audit(new.state, new.name,
                                             jsonb_build_object('reason', new.state_reason));
    end if;
    return null;
end;
$$;

create trigger audit_subscription after insert or update or delete on outbox.subscriptions
    for each row execute function outbox_internal.audit_subscription();

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
