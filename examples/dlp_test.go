package examples

import (
	"context"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

func TestTheDLPExample(t *testing.T) {
	w := newWorld(t)
	shop, projects := w.origin("shop", 11, 8081, ""), w.origin("projects", 12, 8081, "")
	w.proxy("dlp/dlp.yaml")
	c := w.client(&http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", w.ip(2)+":8080")
	}})
	const url = "http://shop.example/"
	post := func(body string) (int, string) {
		t.Helper()
		return send(t, c, "POST", url, strings.NewReader(body), "content-type", "text/plain")
	}

	for name, body := range map[string]string{
		"GITHUB_TOKEN":   "token ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a",
		"GITLAB_TOKEN":   "glpat-" + "AbCdEfGh1234567890zZ",
		"OPENAI_API_KEY": "key: sk-proj-" + strings.Repeat("aB3d", 12),
	} {
		if status, _ := post(body); status != 403 || len(shop.take()) != 0 {
			t.Errorf("%s: %d", name, status)
		}
		w.logged(`" 403 dlp_blocked{` + name + "}")
	}
	if status, _ := post("536-90-4399, 212-45-6789"); status != 200 {
		t.Errorf("two numbers: %d", status)
	}
	if status, _ := post("536-90-4399, 212-45-6789, 212-45-6780"); status != 451 {
		t.Errorf("three numbers: %d", status)
	}
	shop.take()

	tokens := map[string]bool{}
	for _, body := range []string{"tax 86 095 742 719", "Steuer-ID 86095742719"} {
		post(body)
		r := shop.take()
		if len(r) != 1 {
			t.Fatalf("%d requests arrived", len(r))
		}
		m := regexp.MustCompile(`\[GERMANY_TAXPAYER_IDENTIFICATION_NUMBER:([0-9a-f]{32})\]$`).FindStringSubmatch(r[0].body)
		if m == nil {
			t.Fatalf("the application got %q", r[0].body)
		}
		tokens[m[1]] = true
	}
	if len(tokens) != 1 {
		t.Errorf("one number has %d tokens", len(tokens))
	}

	for _, path := range []string{"?q=SKY-1234", "?q=operation+skyfall"} {
		if _, got := send(t, c, "GET", url+path, nil); got != "projects GET /" || len(projects.take()) != 1 || len(shop.take()) != 0 {
			t.Errorf("%s: %q", path, got)
		}
	}
	if _, got := post("all about bluebird"); got != "projects POST /" {
		t.Errorf("%q", got)
	}
	w.logged(`"POST /" 200 via_upstream projects`)
	if _, got := send(t, c, "GET", url, nil, "x-project", "PROJECT"); got != "shop GET /" {
		t.Errorf("a client chose the route: %q", got)
	}

	shop.take()
	post("write to jane@example.com")
	post("write to info@shop.example")
	if r := shop.take(); len(r) != 2 || r[0].Header.Get("x-has-mail") != "1" || r[1].Header.Get("x-has-mail") != "" {
		t.Errorf("%d requests arrived, not one with x-has-mail", len(r))
	}
	if _, got := send(t, c, "GET", url+"4111-1111-1111-1111", nil); got != "shop GET /****-****-****-1111" {
		t.Errorf("the client got %q", got)
	}
	w.checkLog()
}
