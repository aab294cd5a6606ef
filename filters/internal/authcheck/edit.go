package authcheck

import (
	"net/url"
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

// validName reports whether n may name a header: a token (RFC 9110 section
// 5.6.2), lower case, or a pseudo-header's name.
func validName(n string) bool {
	n = strings.TrimPrefix(n, ":")
	for i := range len(n) {
		if c := n[i]; c <= ' ' || c >= 0x7f || 'A' <= c && c <= 'Z' || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return n != ""
}

func validValue(v string) bool {
	for i := range len(v) {
		if c := v[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// framing names headers that belong to one message or connection: a service
// does not get to change them.
func framing(name string) bool {
	switch name {
	case "content-length", "transfer-encoding", "connection", "upgrade", "te", "keep-alive", "proxy-connection", "expect", "trailer":
		return true
	}
	return false
}

// Framing reports whether name belongs to one message or connection.
func Framing(name string) bool { return framing(name) }

// Valid reports whether all headers that a sets can be sent: names and values
// without bytes that end them. With strict, query parameters must need no
// escaping.
func (a *Answer) Valid(strict bool) bool {
	for _, list := range [2][]Header{a.Headers, a.ResponseHeaders} {
		for i := range list {
			f := &list[i]
			if !validName(f.Name) || !validValue(f.Value) || f.Name[0] == ':' && !validPseudo(f.Name, f.Value) {
				return false
			}
		}
	}
	return !strict || !slices.ContainsFunc(a.SetQuery, func(kv [2]string) bool { return !validQuery(kv[0]) || !validQuery(kv[1]) })
}

// validPseudo reports whether a pseudo-header of a request may have this value.
func validPseudo(name, v string) bool {
	for i := range len(v) {
		if c := v[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return false
		}
	}
	switch name {
	case message.Path:
		return strings.HasPrefix(v, "/")
	case message.Method:
		return validName(strings.ToLower(v)) && v[0] != ':'
	case message.Authority:
		return v != "" && !strings.ContainsAny(v, "/?@\\")
	case message.Scheme:
		return v == "http" || v == "https"
	}
	return false
}

// validQuery reports whether s is already written as part of a query.
func validQuery(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '#' || c == '&' {
			return false
		}
	}
	return true
}

// EditRequest applies the headers for upstream as Envoy does: what is set, what
// is added, what is appended to headers that are there, what is removed, in
// this order. allowed, if not nil, is asked about every change. It reports
// whether anything was to be changed.
func (a *Answer) EditRequest(h *message.Header, allowed func(name string, removeOrAppend bool) bool) bool {
	for i := range a.Headers {
		f := &a.Headers[i]
		if !f.Append && !f.Add && !framing(f.Name) && (allowed == nil || allowed(f.Name, false)) {
			h.DelAliases(f.Name)
			h.Set(requestName(f.Name), f.Value)
		}
	}
	for i := range a.Headers {
		f := &a.Headers[i]
		if f.Add && f.Name[0] != ':' && f.Name != "host" && !framing(f.Name) && (allowed == nil || allowed(f.Name, true)) {
			h.DelAliases(f.Name)
			h.Add(f.Name, f.Value)
		}
	}
	for i := range a.Headers {
		f := &a.Headers[i]
		if f.Append && !framing(f.Name) && (allowed == nil || allowed(f.Name, true)) {
			appendTo(h, requestName(f.Name), f.Value)
		}
	}
	for _, n := range a.Remove {
		if n != "" && n[0] != ':' && n != "host" && !framing(n) && (allowed == nil || allowed(n, true)) {
			h.Del(n)
			h.DelAliases(n)
		}
	}
	return len(a.Headers) > 0 || len(a.Remove) > 0
}

func requestName(n string) string {
	if n == "host" {
		return message.Authority
	}
	return n
}

// appendTo appends to the first field of that name, if there is one.
func appendTo(h *message.Header, name, value string) {
	for i := range h.Len() {
		if f := h.At(i); f.Name == name {
			h.SetAt(i, f.Value+","+value)
			return
		}
	}
}

// EditQuery applies the changes of the query to :path, whose parameters are
// sorted by name then, as in Envoy. It reports whether there were any.
func (a *Answer) EditQuery(h *message.Header) bool {
	if len(a.SetQuery) == 0 && len(a.RemoveQuery) == 0 {
		return false
	}
	path, query, _ := strings.Cut(h.Get(message.Path), "?")
	var list [][2]string
	for p := range strings.SplitSeq(query, "&") {
		if k, v, _ := strings.Cut(p, "="); p != "" {
			list = append(list, [2]string{k, v})
		}
	}
	for _, kv := range a.SetQuery {
		list = slices.DeleteFunc(list, func(e [2]string) bool { return e[0] == kv[0] })
		list = append(list, kv)
	}
	for _, k := range a.RemoveQuery {
		list = slices.DeleteFunc(list, func(e [2]string) bool { return e[0] == k })
	}
	slices.SortStableFunc(list, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	var b strings.Builder
	b.WriteString(path)
	for i, kv := range list {
		b.WriteByte("?&"[min(i, 1)])
		b.WriteString(canonical(kv[0]) + "=" + canonical(kv[1]))
	}
	h.Set(message.Path, b.String())
	return true
}

// canonical escapes what must not stand in a request target.
func canonical(s string) string {
	if validQuery(s) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if validQuery(s[i : i+1]) {
			b.WriteByte(s[i])
		} else {
			b.WriteString(strings.ReplaceAll(url.QueryEscape(s[i:i+1]), "+", "%20"))
		}
	}
	return b.String()
}

// EditResponse applies the headers for the client of an allowed request.
func (a *Answer) EditResponse(h *message.Header) {
	for i := range a.ResponseHeaders {
		f := &a.ResponseHeaders[i]
		if framing(f.Name) || f.Name[0] == ':' {
			continue
		}
		action := f.Action
		if f.HasAppend {
			action = OverwriteOrAdd
			if f.Append {
				action = AppendOrAdd
			}
		}
		there := h.Has(f.Name)
		switch {
		case action == AppendOrAdd, action == AddIfAbsent && !there:
			h.Add(f.Name, f.Value)
		case action == OverwriteOrAdd, action == OverwriteIfExists && there:
			h.Set(f.Name, f.Value)
		}
	}
}

// EditRefusal applies the headers for a refused client to the local reply h:
// they replace its own and may repeat; appended ones need one to append to.
func (a *Answer) EditRefusal(h *message.Header) {
	skip := func(f *Header) bool { return f.Name[0] == ':' || framing(f.Name) }
	for i := range a.Headers {
		if f := &a.Headers[i]; !f.Append && !skip(f) {
			h.Del(f.Name)
		}
	}
	for i := range a.Headers {
		if f := &a.Headers[i]; !f.Append && !skip(f) {
			h.Add(f.Name, f.Value)
		}
	}
	for i := range a.Headers {
		if f := &a.Headers[i]; f.Append && !skip(f) {
			appendTo(h, f.Name, f.Value)
		}
	}
}
