# Publishes with ActiveRecord, the database layer of Rails.
require "active_record"
require "securerandom"

# docs:begin
def publish(order)
  ActiveRecord::Base.transaction do
    connection = ActiveRecord::Base.connection
    connection.exec_query("insert into orders (id, total) values ($1, $2)", "insert", [order[:id], order[:total]])
    connection.exec_query(
      "select outbox.publish($1, $2, key => $3) as id", "publish",
      ["shop.orders.create", order.to_json, order[:id]]
    ).first["id"]
  end
end
# docs:end

CALLS = {
  payload: [
    "select outbox.publish($1, $2)",
    "select outbox.publish($1, cast($2 as jsonb))",
    "insert into outbox.events (topic, payload) values ($1, $2)",
  ],
  key: [
    "select outbox.publish($1, '{}', key => $2)",
    "select outbox.publish($1, '{}', key => cast($2 as text))",
    "insert into outbox.events (topic, payload, key) values ($1, '{}', $2)",
  ],
}

def say(line)
  puts line.to_json
end

def trials(argument, given, value)
  CALLS[argument].each_with_index do |sql, call|
    topic = SecureRandom.uuid
    error = nil
    begin
      ActiveRecord::Base.transaction { ActiveRecord::Base.connection.exec_query(sql, "trial", [topic, value]) }
    rescue => failure
      error = failure.message
    end
    say(argument: argument, given: given, call: call, topic: topic, error: error)
  end
end

ActiveRecord::Base.establish_connection(ENV["DATABASE_URL"])
order = { id: Integer(ENV["ORDER"]), total: 2500 }
say(id: publish(order))
begin
  publish(order)
rescue => error
  say(repeated: error.message)
end
json = ActiveRecord::ConnectionAdapters::PostgreSQL::OID::Jsonb.new
trials(:payload, "order.to_json", order.to_json)
trials(:payload, "QueryAttribute of type Jsonb", ActiveRecord::Relation::QueryAttribute.new("payload", order, json))
trials(:payload, "order", order)
trials(:key, "String", order[:id].to_s)
trials(:key, "Integer", order[:id])
