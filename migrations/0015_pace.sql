-- How fast deliveries are sent: limits of organizations, and what relays have reserved of each
-- rate.

-- What an operator allows an organization: all its subscriptions together.
create table outbox.organization_limits (
    organization text        primary key,
    rate         text        not null,
    updated_at   timestamptz not null default now()
);
comment on table outbox.organization_limits is
    'The most that is sent for an organization, for all its subscriptions and by all relays '
    'together. Written by operators, with outbox.limit_organization().';

-- One row for each limited subscription and organization. A rate is a row of slots: from the time
-- of a slot on, one delivery may begin. Relays reserve slots for a moment ahead, many at a time:
-- an update each second, not for each delivery.
-- `next_at` grows and is part of the key: the newest version is at the right end of its entries,
-- also while an old transaction keeps the others.
create table outbox.paces (
    organization    text        not null default '',  -- empty: of a subscription
    subscription_id bigint      not null default 0,   -- 0: of an organization
    -- time of the first slot that no relay has reserved
    next_at         timestamptz not null default '2000-01-01 00:00:00+00',
    primary key (organization, subscription_id, next_at)
) with (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);

-- Rows of outbox.paces are made with the rates, whose rows are locked then: so there is one each.
create function outbox_internal.make_pace() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    tenant text   := '';
    member bigint := 0;
begin
    if tg_table_name = 'subscriptions' then
        member := coalesce(new.id, old.id);
    else
        tenant := coalesce(new.organization, old.organization);
    end if;
    if tg_op = 'DELETE' then
        delete from outbox.paces as pace
         where pace.organization = tenant and pace.subscription_id = member;
    elsif not exists (select from outbox.paces as pace
                       where pace.organization = tenant and pace.subscription_id = member) then
        insert into outbox.paces (organization, subscription_id) values (tenant, member);
    end if;
    return null;
end;
$$;
create trigger make_pace after insert or update of rate on outbox.subscriptions
    for each row when (new.rate is not null) execute function outbox_internal.make_pace();
create trigger remove_pace after delete on outbox.subscriptions
    for each row execute function outbox_internal.make_pace();
create trigger make_pace after insert or update or delete on outbox.organization_limits
    for each row execute function outbox_internal.make_pace();
insert into outbox.paces (subscription_id)
select subscription.id
  from outbox.subscriptions as subscription
 where subscription.rate is not null;

create function outbox_internal.check_organization_limit() returns trigger
language plpgsql as $$
begin
    if new.organization is null or length(new.organization) not between 1 and 255 then
        raise exception using errcode = '22023',
            message = format('organization: %L has not 1 to 255 characters', new.organization),
            hint = 'Name the organization as its events and subscriptions do.';
    end if;
    perform outbox_internal.check_rate(new.rate);
    if tg_op = 'UPDATE' and new.organization <> old.organization then
        raise exception using errcode = '22023',
            message = 'organization: the organization of a limit cannot be changed',
            hint = 'Limit the other organization, and remove the limit of this one.';
    end if;
    new.updated_at := now();
    return new;
end;
$$;
create trigger check_organization_limit before insert or update on outbox.organization_limits
    for each row execute function outbox_internal.check_organization_limit();
-- Relays follow limits as they follow subscriptions.
create constraint trigger bump_generation
    after insert or update or delete on outbox.organization_limits
    deferrable initially deferred for each row execute function outbox_internal.bump_generation();
create trigger ring_subscriptions after insert or update or delete on outbox.organization_limits
    for each statement execute function outbox_internal.ring_subscriptions();

-- Also a plain update is recorded.
create function outbox_internal.audit_limit() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform outbox_internal.record_audit(
                'limited', null,
                jsonb_build_object('organization', coalesce(new.organization, old.organization),
                                   'rate', new.rate));
    return null;
end;
$$;
create trigger audit_limit after insert or update or delete on outbox.organization_limits
    for each row execute function outbox_internal.audit_limit();

create function outbox.limit_organization(organization text, rate text default null)
returns boolean
language plpgsql as $$
begin
    if limit_organization.rate is null then
        delete from outbox.organization_limits as limited
         where limited.organization = limit_organization.organization;
        return found;
    end if;
    insert into outbox.organization_limits as limited (organization, rate)
    values (limit_organization.organization, limit_organization.rate)
    on conflict on constraint organization_limits_pkey do update
       set rate = excluded.rate
     where limited.rate <> excluded.rate;
    return found;
end;
$$;
comment on function outbox.limit_organization is
    'Limit how fast all subscriptions of an organization together are sent to, such as 100/s; '
    'without a rate: remove the limit. Returns whether something changed.';

-- Urgent events that wait in the log: found without a look at the others. Events of priority 0 have
-- no entry and cost nothing.
create index events_urgent on outbox.events (xid, position) where priority > 0;

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
