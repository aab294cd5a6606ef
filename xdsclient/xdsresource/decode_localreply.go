package xdsresource

import (
	hcmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

func (s *scope) localReply(m *hcmv3pb.LocalReplyConfig) *LocalReplyConfig {
	out := &LocalReplyConfig{}
	if f := m.GetBodyFormat(); f != nil {
		s.push("body_format")
		out.Body, out.JSONBody = s.substitution(f)
		out.ContentType = f.GetContentType()
		s.pop()
	}
	out.Mappers = mapEach(m.GetMappers(), func(i int, m *hcmv3pb.ResponseMapper) LocalReplyMapper {
		s.pushIndex("mappers", i)
		defer s.pop()
		s.push("filter")
		lm := LocalReplyMapper{Filter: s.logFilter(m.GetFilter(), 0), StatusCode: int(m.GetStatusCode().GetValue())}
		s.pop()
		if m.GetBody() != nil {
			b := string(s.data("body", m.GetBody()))
			lm.Body = &b
		}
		if f := m.GetBodyFormatOverride(); f != nil {
			s.push("body_format_override")
			lm.BodyFormat, lm.JSONBody = s.substitution(f)
			lm.ContentType = f.GetContentType()
			s.pop()
		}
		lm.Headers = s.headersToAdd("headers_to_add", m.GetHeadersToAdd())
		return lm
	})
	return out
}
