// Publishes with pgx.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"github.com/jackc/pgx/v4"
)

type Order struct {
	ID    int `json:"id"`
	Total int `json:"total"`
}

// docs:begin
func publish(ctx context.Context, conn *pgx.Conn, order Order) (id string, err error) {
	err = conn.BeginFunc(ctx, func(tx pgx.Tx) error {
		insert := "insert into orders (id, total) values ($1, $2)"
		if _, err := tx.Exec(ctx, insert, order.ID, order.Total); err != nil {
			return err
		}
		publish := "select outbox.publish($1, $2, key => $3)::text"
		return tx.QueryRow(ctx, publish, "shop.orders.create", order, strconv.Itoa(order.ID)).Scan(&id)
	})
	return id, err
}

// docs:end

var calls = map[string][]string{
	"payload": {
		"select outbox.publish($1, $2)",
		"select outbox.publish($1, cast($2 as jsonb))",
		"insert into outbox.events (topic, payload) values ($1, $2)",
	},
	"key": {
		"select outbox.publish($1, '{}', key => $2)",
		"select outbox.publish($1, '{}', key => cast($2 as text))",
		"insert into outbox.events (topic, payload, key) values ($1, '{}', $2)",
	},
}

func say(line map[string]interface{}) {
	text, _ := json.Marshal(line)
	fmt.Println(string(text))
}

// Each call in a transaction of its own.
func trials(ctx context.Context, conn *pgx.Conn, argument string, given string, value interface{}) {
	for call, sql := range calls[argument] {
		bytes := make([]byte, 16)
		_, _ = rand.Read(bytes)
		topic := fmt.Sprintf("%x", bytes)
		line := map[string]interface{}{"argument": argument, "given": given, "call": call, "topic": topic, "error": nil}
		if _, err := conn.Exec(ctx, sql, topic, value); err != nil {
			line["error"] = err.Error()
		}
		say(line)
	}
}

func main() {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		panic(err)
	}
	defer conn.Close(ctx)
	number, _ := strconv.Atoi(os.Getenv("ORDER"))
	order := Order{ID: number, Total: 2500}
	id, err := publish(ctx, conn, order)
	if err != nil {
		panic(err)
	}
	say(map[string]interface{}{"id": id})
	if _, err := publish(ctx, conn, order); err != nil {
		say(map[string]interface{}{"repeated": err.Error()})
	}
	text, _ := json.Marshal(order)
	trials(ctx, conn, "payload", "struct", order)
	trials(ctx, conn, "payload", "map", map[string]interface{}{"id": number, "total": 2500})
	trials(ctx, conn, "payload", "[]byte", text)
	trials(ctx, conn, "payload", "string", string(text))
	trials(ctx, conn, "key", "string", strconv.Itoa(number))
	trials(ctx, conn, "key", "int", number)
}
