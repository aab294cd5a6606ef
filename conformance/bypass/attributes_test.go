package bypass

import "net/http"

const (
	wantTargets = 13761
	wantHeads   = 176
)

func fileServer(root string) http.Handler                             { return http.FileServer(http.Dir(root)) }
func handler(f func(http.ResponseWriter, *http.Request)) http.Handler { return http.HandlerFunc(f) }

var hosts = []string{
	"secret.test", "SECRET.test", "Secret.TEST", "secret.test.", "SECRET.TEST.", "secret.test..", "secret.test:80", "secret.test:", "secret.test:080", "secret.test.:80", "secret.test:80:80",
	"secret.test:80@public.test", "public.test@secret.test", "user@secret.test", "user:p@secret.test:80", " secret.test", "secret.test ", "\tsecret.test\t", "secret.test,public.test", "public.test,secret.test",
	"secret.test/", "secret.test/x", "secret.test#", "secret.test?x", "secret%2etest", "%73ecret.test", "secret.test%00", "secret\u3002test", "\uff53ecret.test", "xn--secret.test", "[secret.test]", "secret.test;x", "secret.test\\", "secret.test\x0b",
	"public.test", "public.test:80",
}

var methods = []string{"DELETE", "delete", "Delete", "DeLeTe", "DELETE ", "\tDELETE", "DELETE\x00", "DELETE\t", "XDELETE", "GET", "HEAD", "POST", "OPTIONS"}

var roles = []string{
	"X-Role: admin\r\n", "x-role: admin\r\n", "X-ROLE: admin\r\n", "X-Role:admin\r\n", "X-Role: \tadmin \t\r\n", "X-Role: user\r\nX-Role: admin\r\n", "X-Role: admin\r\nX-Role: user\r\n", "X-Role: user,admin\r\n", "X-Role: admin,\r\n", "X-Role: ,admin\r\n",
	"X-Role: user, admin ,x\r\n", "X-Role:\r\nX-Role: admin\r\n", "X-Role: admin\x0b\r\n", "X-Role: \x0badmin\r\n", "X-Role: \xa0admin\r\n", "X-Role: user\r\n admin\r\n", "X-Role : admin\r\n", "X_Role: admin\r\n", "X-Role\t: admin\r\n", " X-Role: admin\r\n",
	"X-Role: user\nX-Role: admin\r\n", "X-Role: user\rX-Role: admin\r\n", "X-Role: user\r\nConnection: x-role\r\n", "X-Role: admin\r\nConnection: x-role\r\n", "X-Role: ADMIN\r\n", "X-Role: user\r\n", "X-Role: administrator\r\n", "",
}

var upgrades = []string{
	"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
	"Connection: close\r\n", "Content-Type: application/grpc-web\r\n", "Content-Type: application/grpc\r\nTE: trailers\r\n", "Expect: 100-continue\r\nContent-Length: 0\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n",
}
