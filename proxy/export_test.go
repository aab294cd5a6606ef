package proxy

// ReleaseNow does at once what waits for the drain time of replaced parts to be over.
func (s *Server) ReleaseNow() { s.releaseNow() }
