package demo

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// try is a command to try, and what it prints.
type try struct {
	args   []string // of curl
	prints string
}

// tries work as long as the mesh is up.
func (m *mesh) tries() []try {
	client := []string{"-s", "-p", "-x", m.ip(hostClient) + ":15081"}
	stranger := []string{"-s", "-p", "-x", m.ip(hostStranger) + ":15081"}
	json := func(body string) []string {
		return []string{"-H", "'content-type: application/json'", "-d", "'" + body + "'"}
	}
	with := func(as []string, url string, more ...string) []string {
		return append(append(slices.Clip(as), url), more...)
	}
	return []try{
		{with(client, reviewsURL+"/"), "reviews v1"},
		{with(client, reviewsURL+"/", "-H", "'x-version: v2'"), "reviews v2"},
		{with(client, reviewsURL+"/slow"), "upstream request timeout"},
		{with(client, reviewsURL+"/", json(`{"rating": 11}`)...), "a rating is a number from 1 to 5"},
		{with(stranger, reviewsURL+"/"), "RBAC: access denied"},
		{with(client, "http://api.bank.example/pay", json(`{"card": "4111 1111 1111 1111"}`)...), `the bank got: {"card": "**** **** **** 1111"}`},
		{[]string{"-s", m.ip(hostWaypoint) + ":15000/config_dump"}, ""},
		{[]string{"-s", m.ip(hostWaypoint) + ":15000/stats/prometheus"}, ""},
	}
}

func (m *mesh) printTries(w io.Writer) {
	_, _ = fmt.Fprint(w, "\nThe mesh stays up until you interrupt it. Try:\n\n")
	for _, t := range m.tries() {
		line := "  curl"
		var lineSb40 strings.Builder
		for _, a := range t.args {
			lineSb40.WriteString(" " + a)
		}
		line += lineSb40.String()
		if t.prints != "" {
			line += "   # " + t.prints
		}
		_, _ = fmt.Fprintln(w, line)
	}
}
