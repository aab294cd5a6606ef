package examples

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
)

// The servers that a user starts in place of the tests' own.
func TestTheServersToTryTheExamplesWith(t *testing.T) {
	for _, c := range []struct {
		file string
		urls map[string]string
	}{
		{"waypoint/apps.yaml", map[string]string{"http://127.0.0.11:9080": "reviews v1\n", "http://127.0.0.12:9080": "reviews v2\n"}},
		{"ingress/apps.yaml", map[string]string{"http://127.0.0.11:8081": "shop\n", "http://127.0.0.12:8081": "admin\n"}},
		{"dlp/apps.yaml", map[string]string{"http://127.0.0.11:8081": "shop: paid with 4111 1111 1111 1111\n", "http://127.0.0.12:8081": "projects\n"}},
		{"egress/servers.yaml", map[string]string{"https://127.0.0.21:8443": "bank\n", "https://127.0.0.22:8443": "stats\n", "https://127.0.0.23:8443": "impostor\n"}},
	} {
		t.Run(c.file, func(t *testing.T) {
			w := newWorld(t)
			w.proxy(c.file)
			client := w.client(&http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}})
			for url, want := range c.urls {
				url = strings.Replace(url, "127.0.0.", w.net, 1)
				if status, body := send(t, client, "GET", url, nil); status != 200 || body != want {
					t.Errorf("%s: %d %q", url, status, body)
				}
			}
		})
	}
}
